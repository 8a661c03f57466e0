"""What gunicorn serves: the lines of `docs/how-to/deploy-with-gunicorn.md`."""

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app

application = wsgi_app(proxy_from_env())
