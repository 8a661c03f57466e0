"""gunicorn's configuration in the tests: the hook of `docs/how-to/deploy-with-gunicorn.md`."""

from bedrock_proxy_adapters.hosts.wsgi import end_on_sigterm


def post_worker_init(worker: object) -> None:
    from tests.hosts.gunicorn_app import proxy

    end_on_sigterm(proxy, grace=2.0)
