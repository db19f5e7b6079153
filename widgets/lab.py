"""The check that ``make lab`` adds to JupyterLab: nobody is served without a token or password."""

from __future__ import annotations

import ipaddress

from jupyter_server.auth.identity import PasswordIdentityProvider

from bmfl_lab.errors import message


class TokenRequired(PasswordIdentityProvider):
    """Jupyter's own identity provider, which also refuses to start without a token.

    Jupyter's default is to warn and to serve everybody who reaches the port. A notebook server
    executes any code, so the set-up refuses this on every address. On an address that other
    machines reach, a password is required, too, because people copy links with a token in them.
    """

    def validate_security(self, app, ssl_options=None):
        """Stop the server before it listens if the token or password that it needs is missing.

        Parameters
        ----------
        app : jupyter_server.serverapp.ServerApp
            The server that starts.
        ssl_options : dict, optional
            Its TLS options.

        Raises
        ------
        SystemExit
            If a rule is violated; the status is 1, and the server's log says what to do.
        """
        super().validate_security(app, ssl_options)
        problem = ""
        if not (self.auth_enabled and (self.token.strip() or self.hashed_password)):
            problem = message(
                "a token or a password for the notebook server",
                "an empty token",
                "leave out --ServerApp.token=, so that Jupyter makes a token of its own",
            )
        elif not (app.sock or _is_loopback(app.ip) or self.hashed_password):
            problem = message(
                "a password for a notebook server that other machines reach",
                f"--ip={app.ip} with a token only",
                "set one with 'jupyter server password', or leave out --ip and connect with "
                "'ssh -L 8888:localhost:8888' and the name of this machine",
            )
        if problem:
            app.log.critical(problem)
            app.exit(1)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
