"""Refuses an address before a model is loaded for it."""

import socket


def check_address(host: str, port: int) -> None:
    """Refuse an address that nothing can listen at.

    Raises:
        OSError: it is in use, or is no address of this machine.
        ValueError: there is no such port.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OverflowError as error:
        raise ValueError(f"There is no port {port}; ports are numbers up to 65535.") from error
    except OSError as error:
        raise OSError(
            f"Nothing can listen at {host}, port {port} ({error.strerror or error}); is another program there? "
            "Choose another --port or --host."
        ) from error
