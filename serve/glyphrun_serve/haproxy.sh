#!/bin/sh
# Serve starts this in the place of HAProxy, with -db -f CONFIG and more, and GLYPHRUN_HAPROXY says where that is. What Serve
# leaves open: statistics are for this machine alone, and a server that is killed does not leave its HAProxy on the port.
sed -i \
  -e '/^frontend prometheus/,/^frontend http_frontend/ s/bind :/bind 127.0.0.1:/' \
  -e '/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/' "$3"
exec setpriv --pdeathsig KILL "$GLYPHRUN_HAPROXY" "$@"
