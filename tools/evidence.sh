#!/usr/bin/env bash
# Runs every simulated comparison and keeps each one's record. Called by `make evidence`.
# A part that fails does not stop the others; the last line names those that failed.
#
#   BIN         where `tideserve` is (default .venv/bin)
#   EVIDENCE    folder of the records (default evidence)
#   SEEDS       comma-separated (default 1,2,3; conserve takes the first); 1 is the quickest run
#   PARTS       which to run, of those below (default: all for which there is what they need)
#   LONG_TRACE  a spot trace of hours, for spotserve-long and spot-cost-long
#   LIVE        a record of `tideserve bench live-spot`, and PROFILE of the same machine, for
#               spot-replay
set -uo pipefail
BIN=${BIN:-.venv/bin}
EVIDENCE=${EVIDENCE:-evidence}
SEEDS=${SEEDS:-1,2,3}
LONG_TRACE=${LONG_TRACE:-}
LIVE=${LIVE:-}
PROFILE=${PROFILE:-}

parts=(spotserve-{cells,cost,arrivals,load,batching,ablation} conserve spot-cost)
# Neither a long trace nor a live run comes with the project: they are named where there is one.
[[ -n $LONG_TRACE ]] && parts+=(spotserve-long spot-cost-long)
[[ -n $LIVE ]] && parts+=(spot-replay)
read -ra parts <<<"${PARTS:-${parts[*]}}"

run() { # PART: simulate it; its record goes into the file `$record`
  case $1 in
    spotserve-long)
      "$BIN/tideserve" bench spotserve --part long --spot-trace "$LONG_TRACE" --seeds "$SEEDS" \
        --json "$record" ;;
    spotserve-*)
      "$BIN/tideserve" bench spotserve --part "${1#spotserve-}" --seeds "$SEEDS" --json "$record" ;;
    conserve)
      "$BIN/tideserve" bench conserve --seed "${SEEDS%%,*}" --jobs "$(nproc)" --json "$record" ;;
    spot-cost-long)
      "$BIN/tideserve" bench spot-cost --spot-trace "$LONG_TRACE" --seeds "$SEEDS" \
        --json "$record" ;;
    spot-cost)
      "$BIN/tideserve" bench spot-cost --seeds "$SEEDS" --json "$record" ;;
    spot-replay)
      "$BIN/tideserve" bench spot-replay "$LIVE" --profile "$PROFILE" --json "$record" ;;
    *)
      echo "there is no such part" >&2
      return 64 ;;
  esac
}

mkdir -p "$EVIDENCE"
failed=()
for number in "${!parts[@]}"; do
  part=${parts[number]}
  record=$EVIDENCE/$(date -u +%F)-$part.json
  echo "evidence: $((number + 1)) of ${#parts[@]}: $part -> $record" >&2
  began_s=$SECONDS
  if run "$part"; then
    echo "evidence: $part took $((SECONDS - began_s)) s" >&2
  else
    failed+=("$part")
    echo "evidence: $part FAILED" >&2
  fi
done
if ((${#failed[@]})); then
  echo "evidence: failed: ${failed[*]}; again: make evidence PARTS='${failed[*]}'" >&2
  exit 1
fi
