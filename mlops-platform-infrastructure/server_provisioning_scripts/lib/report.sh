# shellcheck shell=bash
# What a run says: one line for each thing looked at, and a count at the end that a second run must show as 0.

CHANGED=0
KEPT=0
NOT_DONE=0
DRY_RUN=${DRY_RUN:-no}

# say KIND TEXT: KIND is ok, changed, note (could not be done here, and why) or info.
say() {
    printf '%-8s %s\n' "$1" "$2"
}

# refuse CAUSE: end with exit 2; nothing was changed by the refused step.
refuse() {
    printf 'refused  %s\n' "$1" >&2
    exit 2
}

kept() {
    KEPT=$((KEPT + 1))
    say ok "$1"
}

# changed TEXT: counts a change; in a dry run it was only found to be needed.
changed() {
    CHANGED=$((CHANGED + 1))
    if [ "$DRY_RUN" = yes ]; then say would "$1"; else say changed "$1"; fi
}

# not_done TEXT: what this place does not allow (no systemd, read-only kernel settings), said and counted.
not_done() {
    NOT_DONE=$((NOT_DONE + 1))
    say note "$1"
}

summary() {
    printf 'summary  changed=%d ok=%d notes=%d dry_run=%s\n' "$CHANGED" "$KEPT" "$NOT_DONE" "$DRY_RUN"
}
