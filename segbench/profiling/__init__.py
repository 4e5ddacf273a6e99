"""What a model costs: time, memory, parameters and multiply-accumulates. Importing the room is light."""
