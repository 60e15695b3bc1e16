# Builds Ollama from its Go module, where Go is, while other stages run, and names it in VELOLLM_TEST_OLLAMA. Sourced by
# .ci/run, which calls start_ollama_build early and await_ollama_build when it needs it.
ollama_version=v0.17.4
ollama_bin=$work/ollama-$ollama_version/ollama

build_ollama() {
  local miniaudio include
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then # headers that Go's module archives leave out
    apt-get update -qq && apt-get install -y -qq libstb-dev nlohmann-json3-dev >/dev/null
  fi
  miniaudio=$(go mod download -json github.com/gen2brain/malgo@v0.11.24 | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  include=$work/include
  mkdir -p "$include/miniaudio" "$(dirname "$ollama_bin")"
  install -m 644 "$(find "$miniaudio" -name miniaudio.h | head -n 1)" "$include/miniaudio/miniaudio.h"
  local flags="-I$include -O3 -w"
  grep -qw avx2 /proc/cpuinfo && flags="$flags -mavx2 -mfma -mf16c"
  GOBIN=$(dirname "$ollama_bin") CGO_ENABLED=1 CGO_CFLAGS=$flags CGO_CXXFLAGS=$flags \
    go install "github.com/ollama/ollama@$ollama_version"
}

start_ollama_build() {
  ollama_build=
  if [ ! -x "$ollama_bin" ] && command -v go >/dev/null; then
    echo "== building Ollama $ollama_version meanwhile (some minutes)"
    (renice -n 19 $BASHPID && build_ollama) >"$work/ollama-build.log" 2>&1 &
    ollama_build=$!
  fi
}

await_ollama_build() {
  if [ -n "$ollama_build" ] && ! wait "$ollama_build"; then
    tail -n 20 "$work/ollama-build.log" >&2
    echo "Ollama could not be built; its tests will be skipped" >&2
  fi
  if [ -x "$ollama_bin" ]; then
    export VELOLLM_TEST_OLLAMA=$ollama_bin
  fi
}
