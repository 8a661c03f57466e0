"""
What the proxy tells the outside about requests that have ended.
"""
