"""One adapter per corpus: files as users have them -> records for the packer."""
