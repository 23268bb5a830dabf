"""What several tests share: drawn data, toy networks, servers, ways to run commands."""
