#!/usr/bin/env bash
# The browser tests drive the system's Chromium. On Debian and Ubuntu as root it is installed; elsewhere the tests say
# that it is missing and skip.
set -u
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null && exit 0
fi
echo "no Chromium here and no way to install it: the browser tests will be skipped"
