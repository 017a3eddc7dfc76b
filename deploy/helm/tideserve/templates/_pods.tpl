{{/* Environment of a service: SERVICE__FIELD for each. Takes service, settings. */}}
{{- define "tideserve.environment" -}}
{{- $service := .service -}}
{{- range $field, $setting := .settings }}
{{- $text := toString $setting }}
{{- if and (kindIs "float64" $setting) (eq $setting (floor $setting)) }}
{{- /* Helm reads every number as a float, and would write a large one with an exponent. */}}
{{- $text = printf "%.0f" $setting }}
{{- end }}
- name: {{ printf "%s__%s" $service $field | upper }}
  value: {{ $text | quote }}
{{- end }}
{{- end -}}

{{- define "tideserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "tideserve.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Every cloud's spot nodes are avoided; a label that a cloud does not have excludes nothing. */}}
{{- define "tideserve.notOnSpot" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - { key: karpenter.sh/capacity-type, operator: NotIn, values: [spot] }
          - { key: eks.amazonaws.com/capacityType, operator: NotIn, values: [SPOT] }
          - { key: cloud.google.com/gke-spot, operator: NotIn, values: ["true"] }
          - { key: kubernetes.azure.com/scalesetpriority, operator: NotIn, values: [spot] }
{{- end -}}

{{/* Pods of one component go to different nodes and zones where there are any. */}}
{{- define "tideserve.spread" -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "tideserve.selector" $ | nindent 6 }}
{{- end }}
{{- end -}}

{{/* Probes of a container. Takes port, startupSeconds. */}}
{{- define "tideserve.probes" -}}
startupProbe:
  httpGet: { path: /live, port: {{ .port }} }
  periodSeconds: 2
  failureThreshold: {{ div (add .startupSeconds 1) 2 }}
livenessProbe:
  httpGet: { path: /live, port: {{ .port }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /health, port: {{ .port }} }
  periodSeconds: 5
  timeoutSeconds: 3
{{- end -}}

{{/* The volume with models, and where it is. Both take root. */}}
{{- define "tideserve.modelVolume" -}}
{{- with .Values.model.volume }}
- name: models
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "tideserve.modelMount" -}}
{{- if .Values.model.volume }}
- { name: models, mountPath: /models, readOnly: true }
{{- end }}
{{- end -}}

{{/* A secret as a folder of files, and where it is. Both take the secret's name. */}}
{{- define "tideserve.secretVolume" -}}
{{- with . }}
- { name: secret, secret: { secretName: {{ . }}, defaultMode: 0440 } }
{{- end }}
{{- end -}}

{{- define "tideserve.secretMount" -}}
{{- with . }}
- { name: secret, mountPath: /etc/tideserve/secret, readOnly: true }
{{- end }}
{{- end -}}

{{/*
A service that keeps nothing. Takes root, component, image, service, values, settings, and perhaps
port (9100), preStopSeconds, serviceAccountName, isScaledByKeda, needsModel, secret: the name
of one that is mounted, and blobVolume: the source of the volume with the files of batches.
*/}}
{{- define "tideserve.deployment" -}}
{{- $root := .root -}}
{{- $port := .port | default 9100 -}}
{{- $settings := mergeOverwrite (dict "nats_url" (include "tideserve.natsUrl" $root)) .settings .values.settings -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "tideserve.fullname" $root }}-{{ .component }}
  labels: {{- include "tideserve.labels" . | nindent 4 }}
spec:
  {{- if not .isScaledByKeda }}
  replicas: {{ .values.replicas }}
  {{- end }}
  selector:
    matchLabels: {{- include "tideserve.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "tideserve.labels" . | nindent 8 }}
    spec:
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .serviceAccountName }}
      serviceAccountName: {{ . }}
      {{- end }}
      automountServiceAccountToken: {{ not (empty .serviceAccountName) }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      securityContext: {{- include "tideserve.podSecurity" . | nindent 8 }}
      {{- with $root.Values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $root.Values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity: {{- include "tideserve.notOnSpot" . | nindent 8 }}
      topologySpreadConstraints: {{- include "tideserve.spread" . | trim | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ include "tideserve.image" (dict "root" $root "name" .image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          env: {{- include "tideserve.environment" (dict "service" .service "settings" $settings) | trim | nindent 12 }}
          ports:
            - { name: metrics, containerPort: {{ $port }} }
          {{- include "tideserve.probes" (dict "port" $port "startupSeconds" 120) | nindent 10 }}
          {{- with .preStopSeconds }}
          lifecycle:
            preStop:
              exec: { command: [sleep, {{ . | quote }}] }
          {{- end }}
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext: {{- include "tideserve.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - { name: tmp, mountPath: /tmp }
            {{- if .needsModel }}
            {{- include "tideserve.modelMount" $root | nindent 12 }}
            {{- end }}
            {{- include "tideserve.secretMount" .secret | nindent 12 }}
            {{- if .blobVolume }}
            - { name: blobs, mountPath: /var/lib/tideserve }
            {{- end }}
      volumes:
        - { name: tmp, emptyDir: {} }
        {{- if .needsModel }}
        {{- include "tideserve.modelVolume" $root | nindent 8 }}
        {{- end }}
        {{- include "tideserve.secretVolume" .secret | nindent 8 }}
        {{- with .blobVolume }}
        - name: blobs
          {{- toYaml . | nindent 10 }}
        {{- end }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "tideserve.fullname" $root }}-{{ .component }}
  labels: {{- include "tideserve.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "tideserve.selector" . | nindent 6 }}
{{- end -}}

{{/* What a pod's containers make the node's id of: one that a pod of the same name has not had. */}}
{{- define "tideserve.nodeIdentity" -}}
- name: POD_NAME
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
- name: POD_IP
  valueFrom: { fieldRef: { fieldPath: status.podIP } }
{{- end -}}

{{/* Pods by a trigger: up at once, down by one a minute. Takes root, component, kind, bounds, triggers. */}}
{{- define "tideserve.scaledObject" -}}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ include "tideserve.fullname" .root }}-{{ .component }}
  labels: {{- include "tideserve.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: {{ .kind }}
    name: {{ include "tideserve.fullname" .root }}-{{ .component }}
  minReplicaCount: {{ .bounds.minReplicas }}
  maxReplicaCount: {{ .bounds.maxReplicas }}
  pollingInterval: 10
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: 180
          policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
  triggers: {{- toYaml .triggers | nindent 4 }}
{{- end -}}
