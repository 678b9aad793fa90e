"""The operator API under ``/operator/v1``: selling credits and keys from another system."""
