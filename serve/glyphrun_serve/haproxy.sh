#!/bin/sh
# Serve starts this in the place of HAProxy, with -db -f CONFIG and more, and GLYPHRUN_HAPROXY says where that is. What Serve
# leaves open: statistics are for this machine alone and commands for this user, whoever trickles headers is answered 408, nobody
# says himself where he asks from, which the gateway would believe its own machine, and a server that is killed does not leave its
# HAProxy on the port.
sed -i \
  -e '/^defaults/ a\    timeout http-request 5s' \
  -e '/^frontend http_frontend/ a\    http-request del-header X-Forwarded-For' \
  -e '/^ *stats socket / s/ mode 666 / mode 600 /' \
  -e '/^frontend prometheus/,/^frontend http_frontend/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' "$3"
exec setpriv --pdeathsig KILL "$GLYPHRUN_HAPROXY" "$@"
