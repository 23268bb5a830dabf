"""One command that says how this machine does: what is fine, what is slow and why, what is broken.

Front door: `examine.examine`. Each job that may crash or hang runs in a process of its own.
"""
