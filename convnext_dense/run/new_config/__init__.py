"""A config for a user's own data: what ``tools/new_config.py`` does.

Read ``write.py`` first: it joins what the data are like (``data.py``), the schedule (``schedule.py``) and the changes
of the model (``model.py``). Configs of the toolkits' zoos pass the swap and ``zoo.py`` before.
"""
