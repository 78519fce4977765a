"""Files: named arrays in every kind of file, places elsewhere, JSON, the cache, and writing all of it or nothing."""
