"""Teams of agents: who depends on whom, who may start now, and a session that runs them all."""
