"""Commands about API keys, for admins: make one, list them, revoke one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from effillm_server.cli.options import AsJson, client
from effillm_server.cli.render import ago, plain, print_json, print_table, say

app = typer.Typer(help="API keys: make, list, revoke (with an admin key in EFFILLM_API_KEY).", no_args_is_help=True)


@app.command()
def create(
    context: typer.Context,
    owner: Annotated[
        str, typer.Argument(metavar="OWNER", help="Who holds it; stored with what they submit.", show_default=False)
    ],
    scopes: Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="read, submit or admin; each includes those before it.",
            show_default="read",
        ),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Days until it ends; without it, it does not.", min=0.001, show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it: it is not stored and cannot be shown again."""
    wanted = {"owner": owner, "scopes": scopes or ["read"], "lifetime_days": days}
    made = client(context).post("/v1/keys", wanted)
    if as_json:
        print_json(made)
        return
    say(f"key {made['id']} of {owner}, {', '.join(made['scopes'])}; it is shown this once:")
    print(plain(made["key"]))


@app.command("list")
def listing(context: typer.Context, as_json: AsJson = False) -> None:
    """List all keys by their first characters, newest first, with when each was last used."""
    found = list(client(context).pages("/v1/keys"))
    print_json(found) if as_json else table(found)


@app.command()
def revoke(
    context: typer.Context,
    key: Annotated[int, typer.Argument(metavar="ID", help="Number of the key, as `list` shows it.", min=1)],
    as_json: AsJson = False,
) -> None:
    """Let a key open nothing any more, within 5 s and for good."""
    revoked = client(context).delete(f"/v1/keys/{key}")
    print_json(revoked) if as_json else print(plain(f"key {revoked['id']} of {revoked['owner']} is revoked"))


def table(keys: Iterable[Mapping[str, Any]]) -> None:
    """The keys, and whether each still opens anything."""
    print_table(
        (">id", "~owner", "begins with", "scopes", "created", "last used", "ends"),
        (
            (
                k["id"],
                k["owner"],
                k["prefix"],
                ", ".join(k["scopes"]),
                ago(k["created_at"]),
                ago(k["last_used_at"]),
                end(k),
            )
            for k in keys
        ),
        empty="no keys yet: make one with `effillm key create OWNER`",
    )


def end(key: Mapping[str, Any]) -> str:
    """When a key ends or has ended."""
    if key["revoked_at"]:
        return f"revoked {ago(key['revoked_at'])}"
    return str(key["expires_at"])[:10] if key["expires_at"] else "never"
