"""Any picture to the stored JPEG: headers, conversion, size policy."""
