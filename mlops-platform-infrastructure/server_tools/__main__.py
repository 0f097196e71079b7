"""`python -m server_tools VERB ...`: hands a verb and its arguments to the module that knows it."""

from __future__ import annotations

import importlib
import sys

# Verb -> (module with `main(arguments) -> exit code`, one line for the help). Imported only when called.
VERBS: dict[str, tuple[str, str]] = {
    "secrets": ("server_tools.secrets", "generate what is missing of the servers' secrets and settings"),
    "up": ("server_tools.stacks", "start a server's stacks and wait until they are healthy"),
    "down": ("server_tools.stacks", "stop a server's stacks; data is kept"),
    "ps": ("server_tools.stacks", "what runs on a server, and how healthy it is"),
    "logs": ("server_tools.stacks", "last lines of a server's logs"),
    "config": ("server_tools.stacks", "a server's resolved Compose file"),
    "policy": ("server_tools.policy", "check every stack against the controls"),
    "images": ("server_tools.images", "build our own images, list all"),
    "release": ("server_tools.publish", "build and push our images under the tags of their sources"),
    "deploy": ("server_tools.deploy", "put this commit's images on a server, keep what was there"),
    "rollback": ("server_tools.deploy", "go back to what a server ran before the last deployment"),
    "services": ("server_tools.deploy", "a server's services as Compose resolves them, JSON"),
    "smoke": ("server_tools.smoke", "ask a server's services whether they are ready and decide"),
    "notify": ("server_tools.notify", "tell a chat how a build ended"),
    "render": ("server_tools.render", "render the platform's configuration templates"),
    "backup": ("server_tools.backup", "back up a server's data"),
    "restore": ("server_tools.backup", "restore a server's data from a backup"),
    "drill": ("server_tools.backup", "back up, destroy, restore and compare"),
    "make-targets": (
        "server_tools.make_targets",
        "make targets that are named, where, and when each was run",
    ),
    "kubernetes-secrets": ("server_tools.kubernetes_secrets", "print a cluster's Secrets, for kubectl apply"),
}


def main(arguments: list[str]) -> int:
    """Run the command line; the verb's module gets the verb and what follows it."""
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: python -m server_tools VERB ...\n")
        for verb, (_, purpose) in VERBS.items():
            print(f"  {verb:<18} {purpose}")
        return 0 if arguments else 2
    if arguments[0] not in VERBS:
        print(f"server_tools: no verb {arguments[0]!r}; one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(VERBS[arguments[0]][0])
    return int(module.main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
