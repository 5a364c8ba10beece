"""The pure data types that every floor speaks. No behaviour beyond validation, no files, no models."""
