"""
Amazon Bedrock behind your own bearer tokens: the pure core.

Nothing in this package does I/O, reads a clock or looks at the environment; the adapters
(:mod:`bedrock_proxy_adapters`) bind it to servers, stores and Bedrock.
"""

__version__ = "0.1.0"
