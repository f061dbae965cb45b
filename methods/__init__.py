"""The methods that come with ditbench, each in a module of its name. A method is imported when it
is asked for."""
