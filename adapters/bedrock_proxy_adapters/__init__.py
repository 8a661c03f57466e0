"""
The only code that touches the outside world. Import the module you need: importing one
adapter loads no other.
"""
