"""What gunicorn serves in the tests: two lines, as a user would write them."""

from bedrock_proxy_adapters.config import proxy_from_env
from bedrock_proxy_adapters.hosts.wsgi import wsgi_app

application = wsgi_app(proxy_from_env())
