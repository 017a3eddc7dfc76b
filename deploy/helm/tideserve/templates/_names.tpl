{{/* Short, because Kubernetes makes labels of up to 63 characters of a StatefulSet's name and more. */}}
{{- define "tideserve.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 24 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 24 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* Labels by which one component's pods are found. Takes root, component. */}}
{{- define "tideserve.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels of an object. Takes root, component. */}}
{{- define "tideserve.labels" -}}
{{ include "tideserve.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* An image under the registry. Takes root, name. */}}
{{- define "tideserve.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .name (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}

{{- define "tideserve.natsUrl" -}}
{{- if .Values.nats.url -}}
{{ .Values.nats.url }}
{{- else -}}
nats://{{ include "tideserve.fullname" . }}-nats:4222
{{- end -}}
{{- end -}}

{{/* The settings of a pool: the defaults, and what it says otherwise. Takes root, name. */}}
{{- define "tideserve.pool" -}}
{{- $own := get .root.Values.pools .name | default dict -}}
{{ mustMergeOverwrite (deepCopy .root.Values.poolDefaults) (deepCopy $own) | toJson }}
{{- end -}}

{{/* Whoever runs in one of these namespaces. */}}
{{- define "tideserve.namespaces" -}}
- namespaceSelector:
    matchExpressions:
      - { key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }} }
{{- end -}}
