"""A Flask application of your own, with the proxy mounted under /ai."""

import atexit

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app

proxy = proxy_from_env()
app = Flask(__name__)


@app.get("/hello")
def hello() -> dict[str, str]:
    return {"hello": "from my own route"}


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/ai": wsgi_app(proxy)})  # type: ignore[method-assign]


@atexit.register
def stop() -> None:
    # By now all that was under way is settled.
    proxy.close()
