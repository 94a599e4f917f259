"""Networks that others trained and published, run by jaxrnn beside their own engines."""
