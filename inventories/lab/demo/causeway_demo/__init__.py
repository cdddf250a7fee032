"""Two small services that prove the platform: catalog, and orders which calls catalog."""
