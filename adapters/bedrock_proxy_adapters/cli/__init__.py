"""
The ``bedrock-proxy`` command.
"""
