#!/bin/sh
# The official image's additions to the sub-commands that the stacks start.
case "$1" in
server)
    shift
    exec /usr/bin/weed server -dir=/data "$@"
    ;;
*) exec /usr/bin/weed "$@" ;;
esac
