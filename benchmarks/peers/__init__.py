"""The peers that Rota is measured beside, with the settings that their documentation gives for work not to be lost."""
