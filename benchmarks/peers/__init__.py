"""The task queues with which Rota is compared, with the documented settings that prevent the loss of work."""
