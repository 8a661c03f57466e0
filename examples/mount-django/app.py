"""A Django project of your own in one file, with the proxy mounted under /ai."""

import atexit
import os
import sys
from collections.abc import Iterable
from typing import Any

import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app

# `python app.py runserver` imports this module twice; Django takes its settings once.
if not settings.configured:
    settings.configure(
        ROOT_URLCONF="app",
        WSGI_APPLICATION="app.application",
        ALLOWED_HOSTS=["localhost", "127.0.0.1"],
        SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only-for-this-example"),
    )
    django.setup()


def hello(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"hello": "from my own route"})


urlpatterns = [path("hello", hello)]


def mounted(prefix: str, below: Any, otherwise: Any) -> Any:
    """Requests under *prefix* go to one WSGI application, the others to another."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path != prefix and not path.startswith(prefix + "/"):
            return otherwise(environ, start_response)  # type: ignore[no-any-return]
        environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix
        environ["PATH_INFO"] = path[len(prefix) :]
        return below(environ, start_response)  # type: ignore[no-any-return]

    return application


if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    proxy = proxy_from_env()
    application = mounted("/ai", wsgi_app(proxy), get_wsgi_application())

    @atexit.register
    def stop() -> None:
        # By now all that was under way is settled.
        proxy.close()
