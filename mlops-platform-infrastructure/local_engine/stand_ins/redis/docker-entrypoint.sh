#!/bin/sh
# As the official image: a first word that is an option or a configuration file belongs to redis-server; root
# gives /data to redis and steps down. Protected mode is off unless asked for, as in the official build.
set -e
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
    set -- redis-server "$@"
fi
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . \! -user redis -exec chown redis '{}' +
    exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"
fi
if [ "$1" = redis-server ]; then
    umask 0077
    if [ $# -eq 1 ]; then set -- "$@" --protected-mode no; fi
fi
exec "$@"
