"""What each stage does, with or without Kedro: sections of the configuration and the manifests of earlier stages in,
its own manifest out. Kedro's nodes add the tracking, `softrepa mine|train|evaluate` call them as they are.
"""
