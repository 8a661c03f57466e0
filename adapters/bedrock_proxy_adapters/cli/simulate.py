"""``bedrock-proxy simulate``: the fake Bedrock, for trying things without an AWS account."""

import click

from bedrock_proxy_adapters.cli.output import not_listening


@click.command(short_help="Run a fake Bedrock Runtime, for trying things without AWS.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=9090,
    show_default=True,
    metavar="NUMBER",
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
def simulate(host: str, port: int) -> None:
    """Run a fake Bedrock Runtime; point AWS_ENDPOINT_URL_BEDROCK_RUNTIME at it."""
    from bedrock_proxy_adapters.simulator import run

    def ready(url: str) -> None:
        click.echo(f"Simulating Bedrock at {url}", err=True)
        click.echo(f"  export AWS_ENDPOINT_URL_BEDROCK_RUNTIME={url}", err=True)
        click.echo(
            "  export AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=simulated AWS_SECRET_ACCESS_KEY=simulated",
            err=True,
        )

    try:
        run(host, port, on_ready=ready)
    except OSError as error:
        raise not_listening(host, port, error) from None
