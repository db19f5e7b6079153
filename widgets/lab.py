"""The check that ``make lab`` adds to JupyterLab: nobody is served without a token or password."""

from __future__ import annotations

from jupyter_server.auth.identity import PasswordIdentityProvider

from bmfl_lab.errors import message


class TokenRequired(PasswordIdentityProvider):
    """Jupyter's own identity provider, which also refuses to start without a token.

    Jupyter's default is to warn and to serve everybody who reaches the port. A notebook server
    executes any code, so the set-up refuses this on every address.
    """

    def validate_security(self, app, ssl_options=None):
        """Stop the server before it listens if neither a token nor a password is set.

        Parameters
        ----------
        app : jupyter_server.serverapp.ServerApp
            The server that starts.
        ssl_options : dict, optional
            Its TLS options.

        Raises
        ------
        SystemExit
            With status 1, after one sentence in the server's log.
        """
        super().validate_security(app, ssl_options)
        if not self.auth_enabled:
            app.log.critical(
                message(
                    "a token or a password for the notebook server",
                    "an empty token",
                    "leave out --ServerApp.token=, so that Jupyter makes a token of its own",
                )
            )
            app.exit(1)
