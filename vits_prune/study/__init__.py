"""Studies: many measurements that answer one question about a voice."""
