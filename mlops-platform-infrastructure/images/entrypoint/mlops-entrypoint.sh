#!/bin/sh
# Exports each file of /run/secrets as the variable of its name in capitals, then becomes the command. A file whose
# name is no variable's (api_keys.json) stays a file. What can't be read stops the start. The roots that build an
# image keep a copy of this file; a test compares them.
set -eu
for file in "${SECRETS_FOLDER:-/run/secrets}"/*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    case $name in *[!A-Za-z0-9_]* | [0-9]*) continue ;; esac
    value=$(cat -- "$file")
    export "$(printf %s "$name" | tr '[:lower:]' '[:upper:]')=$value"
done
unset file name value
exec "$@"
