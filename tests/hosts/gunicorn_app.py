"""What gunicorn serves in the tests: a few lines, as a user would write them."""

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app

proxy = proxy_from_env()
application = wsgi_app(proxy)
