#!/bin/sh
# Serve starts this in the place of HAProxy, with -db -f CONFIG and more, and GLYPHRUN_HAPROXY says where that is. What Serve
# leaves open: statistics are for this machine alone, whoever trickles headers is answered 408, and a server that is killed does
# not leave its HAProxy on the port.
sed -i \
  -e '/^defaults/ a\    timeout http-request 5s' \
  -e '/^frontend prometheus/,/^frontend http_frontend/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' "$3"
exec setpriv --pdeathsig KILL "$GLYPHRUN_HAPROXY" "$@"
