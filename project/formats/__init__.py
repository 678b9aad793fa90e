"""How dates look on the operators' pages, by language (Django's FORMAT_MODULE_PATH)."""
