"""The command line: what the one-shot, the server and an administrator run."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from mlflow_guard import server, settings, users
from mlflow_guard.errors import ConfigurationError
from mlflow_guard.routes import Role


def main(arguments: list[str]) -> int:
    """Run a command and return its exit code; 2 where the set-up is not safe."""
    parser = argparse.ArgumentParser(prog="mlflow_guard", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("init", help="create or migrate the database and the platform's users; safe to rerun")
    verbs.add_parser("serve", help="serve until SIGTERM")
    user = verbs.add_parser("user", help="people's own users").add_subparsers(dest="action", required=True)
    add = user.add_parser("add", help="create or change a user; the password is read from standard input")
    add.add_argument("name")
    add.add_argument("--role", required=True, choices=[role.name.lower() for role in Role])
    remove = user.add_parser("remove", help="remove a user")
    remove.add_argument("name")
    user.add_parser("list", help="names and roles")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.verb == "init":
            changed = server.initialise(os.environ)
            print(f"database ready; users written: {', '.join(changed) or 'none'}")
        elif options.verb == "serve":
            server.serve(os.environ)
        else:
            return _user(options)
    except ConfigurationError as error:
        print(f"mlflow_guard: {error}", file=sys.stderr)
        return 2
    return 0


def _user(options: argparse.Namespace) -> int:
    table = users.UserTable(settings.database_uri(os.environ))
    if options.action == "add":
        password = sys.stdin.readline().rstrip("\r\n")
        table.put(options.name, password, Role[options.role.upper()])
    elif options.action == "remove":
        if options.name in users.PLATFORM_USERS:
            raise ConfigurationError(f"{options.name} belongs to the platform: `init` would bring it back")
        if not table.remove(options.name):
            raise ConfigurationError(f"there is no user {options.name}")
    else:
        for name, user in sorted(table.read().items()):
            print(f"{name}\t{user.role.name.lower()}")
    return 0
