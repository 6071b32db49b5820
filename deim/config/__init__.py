"""Reading typed options from YAML (`loader.py`), and the experiment that they make up (`schema.py`)."""
