# The policy that verdictd runs by when none is given: every packet passes and
# is recorded.
package verdictd

decision := {
	"verdict": "accept",
	"rule": "no-policy",
	"log": true,
}
