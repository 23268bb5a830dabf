"""Where shards are: bounded open files, staging, a shared cache of remote shards."""
