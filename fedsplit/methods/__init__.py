"""One file a paper. A file here that holds a function under ``@method`` is a method; nothing else has to be edited."""
