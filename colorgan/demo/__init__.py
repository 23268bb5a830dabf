"""A page that colors photos in the browser, with nothing to install and no network.

Front door: `page`.
"""
