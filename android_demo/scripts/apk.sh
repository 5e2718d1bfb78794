#!/usr/bin/env bash
# A signed APK without Gradle and without an Android SDK: `make android-apk` at the root of the repository.
#
#   classes    what Maven compiled (`mvn package`), as one dex file by dalvik-dx of Maven Central
#   resources  Debian's aapt2, against Debian's android-framework-res (API 29)
#   natives    of ONNX Runtime's Android library; Maven Central's com.microsoft.onnxruntime:onnxruntime-android.
#              Give its file as ORT_AAR=..., or the same file is taken out of the npm package below.
#   signature  a key made here, on first use; it is nobody's, so the phone will ask
#
# Debian's packages: aapt apksigner zipalign android-framework-res dexdump, and unzip, zip, npm, a JDK, Maven.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly OUT=../out/android WORK=../out/android/work
readonly DX=com.jakewharton.android.repackaged:dalvik-dx:14.0.0_r21
readonly FRAMEWORK=/usr/share/android-framework-res/framework-res.apk
readonly ORT_VERSION=1.29.0
readonly NPM_PACKAGE=com.github.asus4.onnxruntime@0.4.9
readonly PAGE=16384

need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "apk.sh: $tool is missing; see the list of packages in $0" >&2; exit 2; }
  done
}

fetch_natives() {  # prints the path of the AAR
  if [ -n "${ORT_AAR:-}" ]; then echo "$ORT_AAR"; return; fi
  local aar=$OUT/onnxruntime-android-$ORT_VERSION.aar
  if [ ! -f "$aar" ]; then
    (cd "$WORK" && npm pack --silent "$NPM_PACKAGE" >/dev/null && tar xzf com.github.asus4.*.tgz package/Plugins/Android package/Plugins/Linux)
    # The package's library for Linux must be Microsoft's own of this version: then its library for Android is, too.
    local ours theirs
    ours=$(unzip -p "$(jar onnxruntime)" ai/onnxruntime/native/linux-x64/libonnxruntime.so | sha256sum)
    theirs=$(sha256sum <"$WORK/package/Plugins/Linux/x64/libonnxruntime.so")
    [ "$ours" = "$theirs" ] || { echo "apk.sh: $NPM_PACKAGE does not hold ONNX Runtime $ORT_VERSION" >&2; exit 1; }
    mv "$WORK/package/Plugins/Android/onnxruntime.aar" "$aar"
  fi
  echo "$aar"
}

jar() { find target/libraries -name "$1-[0-9]*.jar" | head -1; }

dex() {
  mkdir -p "$WORK/classes"
  for library in kotlin-stdlib gson; do unzip -qo "$(jar "$library")" '*.class' -d "$WORK/classes" -x 'META-INF/*'; done
  unzip -qo "$(jar onnxruntime)" 'ai/onnxruntime/*.class' -d "$WORK/classes"
  cp -r core/target/classes/. app/target/classes/. "$WORK/classes"
  rm -rf "$WORK/classes/META-INF"
  java -Xmx2g -cp "$(jar dalvik-dx)" com.android.dx.command.Main --dex --min-sdk-version=26 --output="$WORK/apk/classes.dex" "$WORK/classes"
}

package() {
  aapt2 compile --dir app/src/main/res -o "$WORK/resources.zip"
  sed 's/<manifest /<manifest package="org.pocketlm.app" /' app/src/main/AndroidManifest.xml >"$WORK/AndroidManifest.xml"
  aapt2 link -o "$WORK/unaligned.apk" -I "$FRAMEWORK" --manifest "$WORK/AndroidManifest.xml" \
    --min-sdk-version 26 --target-sdk-version 29 --version-code 1 --version-name 0.1.0 "$WORK/resources.zip"
  # Stored, not compressed: the system maps both out of the APK.
  (cd "$WORK/apk" && zip -q -0 -r ../unaligned.apk classes.dex lib)
  python3 scripts/align.py "$WORK/unaligned.apk" "$WORK/aligned.apk" $PAGE
}

sign() {
  local keys=$OUT/debug.jks
  [ -f "$keys" ] || keytool -genkeypair -keystore "$keys" -storepass android -keypass android -alias pocketlm -keyalg RSA \
    -keysize 2048 -validity 10000 -dname CN=pocketlm 2>/dev/null
  apksigner sign --ks "$keys" --ks-pass pass:android --min-sdk-version 26 --out "$OUT/pocketlm.apk" "$WORK/aligned.apk"
}

verify() {
  local apk=$OUT/pocketlm.apk
  apksigner verify --min-sdk-version 26 "$apk"
  zipalign -c 4 "$apk"
  python3 scripts/check_apk.py "$apk" $PAGE
  aapt2 dump badging "$apk" | grep -E "^(package|sdkVersion|launchable-activity|native-code)"
  dexdump -f "$WORK/apk/classes.dex" >"$WORK/dexdump.txt"
  python3 scripts/check_dex.py "$WORK/dexdump.txt" "$WORK/classes"
}

need mvn java keytool aapt2 apksigner zipalign dexdump unzip zip python3
rm -rf "$WORK"
mkdir -p "$WORK/apk/lib/arm64-v8a"
mvn -q -B package dependency:copy-dependencies -DskipTests -DincludeScope=runtime -DoutputDirectory="$PWD/target/libraries"
mvn -q -B -N dependency:copy -Dartifact=$DX -DoutputDirectory="$PWD/target/libraries"
aar=$(fetch_natives)
unzip -qo -j "$aar" 'jni/arm64-v8a/*.so' -d "$WORK/apk/lib/arm64-v8a"
dex
package
sign
verify
ls -l "$OUT/pocketlm.apk"
