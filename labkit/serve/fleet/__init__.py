"""Many replicas of one server: `policies` say who gets a request, `simulate` tries them on thousands of replicas.

Nothing is loaded here, so that both stay without torch and Ray.
"""
